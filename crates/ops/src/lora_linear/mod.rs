//! A frozen product and its low-rank update in one op.
