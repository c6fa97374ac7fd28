/// <reference types="node" preserve="true" />

/** Messaging over NATS JetStream that does not lose a message. */

export { Bridge, connect } from "./bridge.js";
export type { Headers, Message, MessageOptions, Outcome, Payload, Published } from "./bridge.js";
export type { Abortable } from "./abort.js";
export { Consumer } from "./consumer.js";
export type { ConsumerState } from "./consumer.js";
export { Delivery, originalName, Received } from "./delivery.js";
export type { Reason, Settled } from "./delivery.js";
export { DeadLetters } from "./dead-letters.js";
export type { DeadLetter, DeadLetterFilter, DeadLetterGroup, GroupBy, Imported, RedriveOptions, Redriven } from "./dead-letters.js";
export { BridgeError } from "./errors.js";
export { GiveUp } from "./handling.js";
export type { Handler, Key, RunOptions } from "./handling.js";
export { HealthCheck, metrics } from "./health.js";
export type { Health, Lag, MirrorLag, Stats } from "./health.js";
export { Ledger, LedgerEntry } from "./ledger.js";
export type { LedgerState } from "./ledger.js";
export { onLog } from "./logs.js";
export type { LogLevel, LogRecord } from "./logs.js";
export type { Change, Plan } from "./manifest.js";
export { openOutbox, Outbox } from "./outbox.js";
export type { OutboxOptions, OutboxStatus, PutOptions, Queued, Refused } from "./outbox.js";
export { Schemas } from "./schemas.js";
export type { Compatibility, RegisterOptions, Registered, Schema, SchemaDifference, SchemaText } from "./schemas.js";
export { AmqpListener } from "./listener.js";
export type { Address, ListenerState } from "./listener.js";
export { Sidecar } from "./sidecar.js";
export type {
  Adopted,
  BackfillOptions,
  BackfillProgress,
  BackfillQueue,
  BackfillReport,
  BrokerStatus,
  ChangeOptions,
  ChangeRecord,
  CutoverStatus,
  CutoverWarning,
  Drain,
  DrainingQueue,
  DrainOptions,
  Faults,
  GateReason,
  LogEntry,
  Phase,
  QueueParity,
  QueueStatus,
  Rehearsal,
  RehearsedQueue,
  RehearseOptions,
  SidecarStatus,
  StandbyStatus,
  Unmapped,
  Verdict,
} from "./cutover.js";
export type { Upcast, UpcastStep } from "./upcast.js";
export type { BridgeErrorDetails, ErrorCode, ErrorContext, Landed } from "./errors.js";
export type {
  AmqpListenerOptions,
  ApplyOptions,
  BreakerOptions,
  BucketOptions,
  ConnectOptions,
  ConsumeOptions,
  ConsumerOptions,
  HealthOptions,
  PublishOptions,
  RetryPolicy,
  SidecarOptions,
  StreamOptions,
} from "./options.js";
