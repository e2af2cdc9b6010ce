//! LoRA adapters over any frozen matrix, in PEFT's format.
