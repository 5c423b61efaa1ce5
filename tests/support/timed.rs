//! Tests of our own mains, which tell how long they took.

use libtest_mimic::Trial;
use std::time::Instant;

/// Prints `time NAME SECONDS` when the test ends, however it ends; `scripts/suite`
/// reads it.
struct Timed {
    name: String,
    since: Instant,
}

impl Drop for Timed {
    fn drop(&mut self) {
        println!(
            "time {} {:.3}",
            self.name,
            self.since.elapsed().as_secs_f64()
        );
    }
}

/// A test that passes unless it panics.
pub fn trial(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || {
        let _timed = Timed {
            name,
            since: Instant::now(),
        };
        test();
        Ok(())
    })
}
