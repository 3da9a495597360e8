"""The kernel side: receives nothing, hands on records as structured arrays; counts what could not be handed over."""
