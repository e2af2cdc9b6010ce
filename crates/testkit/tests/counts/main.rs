//! What counts accesses where there is no GPU counts them right.
#![cfg(target_os = "linux")]

mod cuda;
