//! chandlery.
