"""Files as they lie on the disk: durable writes, JSON lines, LoRA adapters, directories without
links."""
