// One connection for server-sent events, for the whole page. It sends "status", "incident", "points", and "state" as it
// comes and goes. While the tab is hidden it is closed: a browser has only six connections to a place.

import { eventsAddress } from "./api.js";

class Live extends EventTarget {
  #source = null;
  #stream = "";
  #wasLost = false;
  state = "waiting";

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close("asleep") : this.#open()));
    addEventListener("pagehide", () => this.#close("asleep"));
    addEventListener("pageshow", () => this.#source ?? this.#open());
  }

  /** Listen, also to the points of a stream; "": of none. */
  watch(stream = "") {
    if (this.#source && stream === this.#stream) return;
    this.#stream = stream;
    this.#open();
  }

  #open() {
    this.#source?.close();
    const source = (this.#source = new EventSource(eventsAddress(this.#stream)));
    source.addEventListener("open", () => {
      if (this.#wasLost) this.#tell("again", null); // what happened meanwhile has to be asked for
      this.#wasLost = false;
      this.#turn("live");
    });
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      this.#wasLost = true;
      this.#turn("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(() => source === this.#source && this.#open(), 3000);
    });
    for (const kind of ["status", "incident", "points"]) {
      source.addEventListener(kind, (event) => source === this.#source && this.#tell(kind, JSON.parse(event.data)));
    }
  }

  #close(state) {
    this.#source?.close();
    this.#source = null;
    this.#wasLost = true;
    this.#turn(state);
  }

  #turn(state) {
    this.state = state;
    this.#tell("state", state);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}

export const live = new Live();

/** Call `act(detail)` on each event of a kind, until the signal. */
export function on(kind, signal, act) {
  live.addEventListener(kind, (event) => act(event.detail), { signal });
}
