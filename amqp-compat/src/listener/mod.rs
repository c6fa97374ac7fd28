//! The server sockets.
