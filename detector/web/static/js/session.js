// What this browser may do. The daemon says whether who asks may write; events are the same for everyone.

import { get } from "./api.js";

class Session extends EventTarget {
  writable = false;

  /** Ask the daemon anew; return its status. */
  async refresh() {
    const status = await get("/status");
    this.writable = status.writable;
    this.dispatchEvent(new Event("change"));
    return status;
  }
}

export const session = new Session();
