/** Messaging over NATS JetStream that does not lose a message. */

export { Bridge, connect } from "./bridge.js";
export type { Headers, MessageOptions, Payload, Published } from "./bridge.js";
export { Consumer } from "./consumer.js";
export type { ConsumerState } from "./consumer.js";
export { Delivery, originalName } from "./delivery.js";
export type { Reason, Settled } from "./delivery.js";
export { BridgeError } from "./errors.js";
export type { BridgeErrorDetails, ErrorCode, Landed } from "./errors.js";
export type { ConnectOptions, ConsumeOptions, ConsumerOptions, PublishOptions, RetryPolicy, StreamOptions } from "./options.js";
