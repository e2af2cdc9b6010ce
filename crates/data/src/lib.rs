//! Parquet and JSON Lines to batches of token ids with loss masks.
