//! Dropout whose mask is a function of (seed, site, index).
