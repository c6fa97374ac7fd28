//! eventually
