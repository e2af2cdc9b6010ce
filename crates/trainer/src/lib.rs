//! The halfbyte binary: QLoRA fine-tuning, generation, evaluation and merging.
