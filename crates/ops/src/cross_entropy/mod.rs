//! The output head fused with the loss, in chunks, so that the full logits never exist.
