//! Pure: exchanges, queues, bindings, and where a message goes.
