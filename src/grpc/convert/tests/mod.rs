//! Each way of getting a field wrong, with its path; what comes out of right
//! ones; and that no message whatever makes the conversion panic.

mod any;
mod create;
mod fields;
mod shown;
