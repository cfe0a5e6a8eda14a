"""The ONNX graph of the embedded guardian: a prefix LM with int8 weights and a key-value cache.

Written node by node, because an exporter keeps two copies of the tied embedding (gather and output layer)
and cannot share one int8 table between them. One graph serves detection and decoding. The runtime
computes every output, wanted or not: detection leaves `next` empty, so that it pays nothing for logits.

Inputs   ids, positions (B, T) int64 · mask (B, 1, T, P+T) float, 0 or a large negative number ·
         past_keys, past_values (layers, B, heads, P, size) float · select (B, K) int64, places in T ·
         tokens (C) int64, whose scores are wanted · next (M) int64, which of the K places want logits
Outputs  scores (B, K, C) · logits (B*M, vocabulary) · states (B, K, hidden), the last ones of the K places ·
         keys, values (layers, B, heads, P+T, size)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
OPSET = 20
ZERO = 128  # zero point of unsigned tables


def quantize(weight: Array, axis: int) -> tuple[Array, Array]:
    """Symmetric int8 weights and their float scales; one scale for each index of `axis`."""
    other = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(other, keepdims=True), 1e-8) / 127
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


class Graph:
    """Collects nodes and initializers; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=outputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        self._count += 1
        names = [f"{kind}_{self._count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def constant(self, value: Array) -> str:
        self._count += 1
        name = f"c{self._count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant(np.array(sizes, np.int64))

    def linear(self, x: str, weight: Array, bias: Array) -> str:
        """x @ weight + bias with dynamically quantised activations; weight is (in, out)."""
        q, scale = quantize(weight, 1)
        xq, x_scale, x_zero = self.ops("DynamicQuantizeLinear", x, outputs=3)
        product = self.op("MatMulInteger", xq, self.constant(q), x_zero)
        scales = self.op("Mul", x_scale, self.constant(scale.ravel()))
        y = self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), scales)
        return self.op("Add", y, self.constant(bias))

    def norm(self, x: str, weight: Array, bias: Array, epsilon: float) -> str:
        return self.op("LayerNormalization", x, self.constant(weight), self.constant(bias), epsilon=epsilon)

    def table(self, values: Array) -> tuple[str, str]:
        """An 8-bit table with one scale for each row. Unsigned: the runtime's matmul wants its left side so."""
        q, scale = quantize(values, 0)
        return self.constant((q.astype(np.int16) + ZERO).astype(np.uint8)), self.constant(scale)

    def rows(self, table: tuple[str, str], index: str) -> str:
        """Rows of a table as floats."""
        values = self.op("Cast", self.op("Gather", table[0], index), to=TensorProto.FLOAT)
        centred = self.op("Sub", values, self.constant(np.array(ZERO, np.float32)))
        return self.op("Mul", centred, self.op("Gather", table[1], index))


def build(state: dict[str, Array], layers: int, heads: int, epsilon: float) -> onnx.ModelProto:
    """The graph of a BertForMaskedLM state dict (float32 arrays)."""
    g = Graph()
    embeddings = state["bert.embeddings.word_embeddings.weight"]
    table = g.table(embeddings)
    hidden = _embed(g, state, table, epsilon)
    keys, values = [], []
    for layer in range(layers):
        hidden, key, value = _layer(g, state, layer, hidden, heads, epsilon, last=layer + 1 == layers)
        keys.append(key)
        values.append(value)
    features = _transform(g, state, hidden, epsilon)
    bias = g.constant(state["cls.predictions.bias"])
    outputs = {
        "scores": _scores(g, features, table, bias),
        "logits": _logits(g, g.op("Gather", features, "next", axis=1), table, bias, embeddings.shape[1]),
        "states": hidden,
        "keys": g.op("Concat", *(g.op("Unsqueeze", k, g.shape(0)) for k in keys), axis=0),
        "values": g.op("Concat", *(g.op("Unsqueeze", v, g.shape(0)) for v in values), axis=0),
    }
    for name, result in outputs.items():
        g.nodes.append(helper.make_node("Identity", [result], [name]))
    return _model(g, layers, heads, embeddings.shape[1] // heads)


def _embed(g: Graph, state: dict[str, Array], table: tuple[str, str], epsilon: float) -> str:
    prefix = "bert.embeddings."
    # All tokens are of type 0, so its vector is part of every position.
    positions = (
        state[prefix + "position_embeddings.weight"] + state[prefix + "token_type_embeddings.weight"][0]
    )
    total = g.op("Add", g.rows(table, "ids"), g.rows(g.table(positions), "positions"))
    return g.norm(total, state[prefix + "LayerNorm.weight"], state[prefix + "LayerNorm.bias"], epsilon)


def _layer(
    g: Graph, state: dict[str, Array], layer: int, x: str, heads: int, epsilon: float, last: bool
) -> tuple[str, str, str]:
    """One block; the last one gives keys and values of all places but goes on with the selected ones only."""

    def part(name: str) -> tuple[Array, Array]:
        prefix = f"bert.encoder.layer.{layer}.{name}."
        return state[prefix + "weight"].T, state[prefix + "bias"]

    def norm(name: str, value: str) -> str:
        weight, bias = part(name)
        return g.norm(value, weight, bias, epsilon)

    size = state["bert.embeddings.word_embeddings.weight"].shape[1] // heads
    projections = [part(f"attention.self.{name}") for name in ("query", "key", "value")]
    weight = np.concatenate([w for w, _ in projections], 1)
    bias = np.concatenate([b for _, b in projections])
    # The 1/sqrt(size) of attention is folded into the query's weights.
    weight[:, : heads * size] /= np.sqrt(size)
    bias[: heads * size] /= np.sqrt(size)
    q, k, v = g.ops("Split", g.linear(x, weight, bias), outputs=3, axis=2, num_outputs=3)
    mask = "mask"
    if last:
        x, q = _selected(g, x), _selected(g, q)
        mask = g.op("Unsqueeze", _selected(g, g.op("Squeeze", mask, g.shape(1))), g.shape(1))
    q, k, v = (_heads(g, t, heads, size) for t in (q, k, v))
    index = g.constant(np.array(layer, np.int64))
    k = g.op("Concat", g.op("Gather", "past_keys", index, axis=0), k, axis=2)
    v = g.op("Concat", g.op("Gather", "past_values", index, axis=0), v, axis=2)
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
    context = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    context = g.op("Reshape", context, g.shape(0, 0, heads * size))
    attended = g.linear(context, *part("attention.output.dense"))
    x = norm("attention.output.LayerNorm", g.op("Add", attended, x))
    inner = g.op("Gelu", g.linear(x, *part("intermediate.dense")))
    return norm("output.LayerNorm", g.op("Add", g.linear(inner, *part("output.dense")), x)), k, v


def _selected(g: Graph, x: str) -> str:
    """The selected places of a (B, T, ...) tensor."""
    return g.op("GatherND", x, g.op("Unsqueeze", "select", g.shape(2)), batch_dims=1)


def _heads(g: Graph, x: str, heads: int, size: int) -> str:
    return g.op("Transpose", g.op("Reshape", x, g.shape(0, 0, heads, size)), perm=[0, 2, 1, 3])


def _transform(g: Graph, state: dict[str, Array], x: str, epsilon: float) -> str:
    prefix = "cls.predictions.transform."
    dense = g.linear(x, state[prefix + "dense.weight"].T, state[prefix + "dense.bias"])
    return g.norm(
        g.op("Gelu", dense), state[prefix + "LayerNorm.weight"], state[prefix + "LayerNorm.bias"], epsilon
    )


def _scores(g: Graph, features: str, table: tuple[str, str], bias: str) -> str:
    """Scores of the wanted tokens only: what detection needs."""
    rows = g.op("Transpose", g.rows(table, "tokens"), perm=[1, 0])
    return g.op("Add", g.op("MatMul", features, rows), g.op("Gather", bias, "tokens"))


def _logits(g: Graph, features: str, table: tuple[str, str], bias: str, width: int) -> str:
    """Logits of the whole vocabulary, from the same 8-bit table that embeds: (table @ features^T)^T."""
    flat = g.op("Transpose", g.op("Reshape", features, g.shape(-1, width)), perm=[1, 0])
    quantized, scale, zero = g.ops("DynamicQuantizeLinear", flat, outputs=3)
    product = g.op("MatMulInteger", table[0], quantized, g.constant(np.array(ZERO, np.uint8)), zero)
    values = g.op("Mul", g.op("Cast", product, to=TensorProto.FLOAT), g.op("Mul", table[1], scale))
    return g.op("Add", g.op("Transpose", values, perm=[1, 0]), bias)


def _model(g: Graph, layers: int, heads: int, size: int) -> onnx.ModelProto:
    def tensor(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    integer, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        tensor("ids", integer, "B", "T"),
        tensor("positions", integer, "B", "T"),
        tensor("mask", real, "B", 1, "T", "S"),
        tensor("past_keys", real, layers, "B", heads, "P", size),
        tensor("past_values", real, layers, "B", heads, "P", size),
        tensor("select", integer, "B", "K"),
        tensor("tokens", integer, "C"),
        tensor("next", integer, "M"),
    ]
    outputs = [
        tensor("scores", real, "B", "K", "C"),
        tensor("logits", real, "N", "V"),
        tensor("states", real, "B", "K", "H"),
        tensor("keys", real, layers, "B", heads, "S", size),
        tensor("values", real, layers, "B", heads, "S", size),
    ]
    graph = helper.make_graph(g.nodes, "guardian", inputs, outputs, g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model
