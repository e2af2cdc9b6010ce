//! Products against an f64 oracle, over sources, transpositions, kernels and shapes.

mod exact;
mod interleavings;
mod oracle;
mod sources;
mod support;
