"""Export to one GGUF file, which llama.cpp loads: tensors, hyperparameters and tokenizer, by the `gguf` package.

Source of the format and of the two changes to weights (Llama's rotary order, Llama 3's frequency factors):
llama.cpp, docs and conversion scripts (github.com/ggml-org/llama.cpp). Families that are not in `_FAMILIES` have
tokenizers or weights that only its own converter knows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.example import write_json
from slm_guardian.layout import Layout
from slm_guardian.train.export_hf import whole
from slm_guardian.train.stages import read_manifest

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig

# model_type -> architecture of llama.cpp
_FAMILIES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_PLAIN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How llama.cpp splits text before its merges, by the name that it has for it.
_SPLITS = {
    "gpt-2": [_PLAIN],
    "llama-bpe": [_WORDS.replace("DIGITS", "{1,3}")],
    "qwen2": [_WORDS.replace("DIGITS", "")],
    "exaone": [r"\p{N}", _PLAIN],
}
_PROBE = "I'm told: 3 33 33333,  \n\n what?!  \t안녕하세요 친구들, 2026년\r\n  HE'LL é ñ ===  ok… 👍👍 a_b\n"
FILE_TYPES = ("f32", "f16", "bf16", "q8_0")


def export_gguf(model_dir: Path, out: Path, kind: str = "f16") -> dict[str, int]:
    """Write `NAME.gguf`, with the tokenizer.json and guardian.json that the http engine reads beside it.

    Matrices are stored as `kind`, vectors as float32. Returns the bytes of each file. Raises ModelError for a
    family or tokenizer that only llama.cpp's own converter knows.
    """
    import gguf

    model: Any = whole(model_dir)
    layout = Layout.load(model_dir)
    if model.config.model_type not in _FAMILIES:
        raise ModelError(
            f"GGUF of the family {model.config.model_type} is not written here: export with --to hf, then run "
            "llama.cpp's convert_hf_to_gguf.py on it"
        )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{out.resolve().name}.gguf"
    partial = path.with_suffix(".partial")
    arch = gguf.MODEL_ARCH[_FAMILIES[model.config.model_type]]
    try:
        writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[arch])
        _add_settings(writer, model.config, kind)
        _add_tokenizer(writer, layout, model_dir, model.get_input_embeddings().weight.shape[0])
        names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        for name, tensor in _tensors(model):
            values = np.ascontiguousarray(tensor.numpy())
            _add_tensor(writer, names.get_name(name, (".weight", ".bias")), values, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
        shutil.copyfile(model_dir / "tokenizer.json", out / "tokenizer.json")
        write_json(out / "guardian.json", read_manifest(model_dir))
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    return {name: (out / name).stat().st_size for name in (path.name, "tokenizer.json", "guardian.json")}


def split_name(tokenizer: Tokenizer) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits text, None where it is none of those known here."""
    from tokenizers import Regex, pre_tokenizers

    if tokenizer.pre_tokenizer is None:
        return None
    expected = tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)
    for name, patterns in _SPLITS.items():
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        if pre_tokenizers.Sequence([*splits, level]).pre_tokenize_str(_PROBE) == expected:
            return name
    return None


def _add_settings(writer: GGUFWriter, config: PreTrainedConfig, kind: str) -> None:
    import gguf

    c: Any = config
    rope = c.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "llama3") or getattr(
        c, "use_sliding_window", False
    ):
        raise ModelError(
            "this model's rotary scaling or sliding window is not written here: use llama.cpp's converter"
        )
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_name(str(c.name_or_path).rpartition("/")[2])
    writer.add_file_type(gguf.LlamaFileType[types[kind]])
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)


def _add_tokenizer(writer: GGUFWriter, layout: Layout, model_dir: Path, rows: int) -> None:
    import gguf

    split = split_name(layout.tokenizer)
    if split is None:
        raise ModelError(
            "this tokenizer splits text in a way not known here: export with --to hf, then run llama.cpp's "
            "convert_hf_to_gguf.py on it"
        )
    tokens = {i: token for token, i in layout.tokenizer.get_vocab().items()}
    added = layout.tokenizer.get_added_tokens_decoder()

    def kind(i: int) -> int:
        if i not in added:
            return gguf.TokenType.NORMAL if i in tokens else gguf.TokenType.UNUSED
        return gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([kind(i) for i in range(rows)])
    writer.add_token_merges(gguf.SpecialVocab(model_dir, load_merges=True).merges)
    writer.add_eos_token_id(layout.end)
    writer.add_pad_token_id(layout.end)
    writer.add_add_bos_token(False)


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors as llama.cpp wants them, in float32."""
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = tensor.detach().cpu().float()
        if config.model_type == "llama" and ".q_proj." in name:
            tensor = _rotary_order(tensor, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            tensor = _rotary_order(tensor, config.num_key_value_heads)
        yield name, tensor
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope.freqs.weight", _frequency_factors(config)


def _rotary_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The two halves that Hugging Face rotates against each other, interleaved as Llama's authors have them."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _frequency_factors(config: Any) -> torch.Tensor:
    """What Llama 3.1 divides its rotary frequencies by: 1 for short waves, `factor` for long ones, between them both.

    transformers computes the divided frequencies; here they are divided out again.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    divided, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(divided)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / divided.double()).float()


def _add_tensor(writer: GGUFWriter, name: str | None, values: np.ndarray, kind: str) -> None:
    import gguf

    if name is None:
        raise ModelError("the model has a tensor that llama.cpp does not know: use its own converter")
    matrix = values.ndim > 1 and (kind != "q8_0" or values.shape[-1] % 32 == 0)
    stored = gguf.GGMLQuantizationType[kind.upper() if matrix else "F32"]
    writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
