//! The HTTP control surface.
