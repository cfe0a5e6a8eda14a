"""The HTTP gateway: `guardian serve`."""
