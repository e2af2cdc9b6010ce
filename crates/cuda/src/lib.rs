//! CUDA at run time, never at build time: probing the driver and its libraries without panicking.
