//! Any bytes as the request of any call.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kvmlet::grpc::fuzz::convert(bytes));
