//! Layer normalisation.
