//! AdamW whose state pages between memory and a spill file, with clipping and learning-rate schedules.
