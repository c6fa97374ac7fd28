// The same classes for `import` as for `require`, so that `instanceof BridgeError` holds across both.
import bridge from "./dist/index.js";

export const {
  AmqpListener,
  Bridge,
  BridgeError,
  Consumer,
  DeadLetters,
  Delivery,
  GiveUp,
  HealthCheck,
  Ledger,
  LedgerEntry,
  Outbox,
  Received,
  Schemas,
  Sidecar,
  connect,
  metrics,
  onLog,
  openOutbox,
  originalName,
} = bridge;
