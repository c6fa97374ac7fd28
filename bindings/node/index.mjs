// The same classes for `import` as for `require`, so that `instanceof BridgeError` holds across both.
import bridge from "./dist/index.js";

export const { Bridge, BridgeError, Consumer, Delivery, connect, originalName } = bridge;
