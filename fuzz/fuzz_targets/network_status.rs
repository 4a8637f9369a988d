#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::network_status(data));
