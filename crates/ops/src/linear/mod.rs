//! `y = x Wᵀ + b` for a weight that trains.
