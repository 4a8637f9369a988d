//! meta-cni
fn main() {}
