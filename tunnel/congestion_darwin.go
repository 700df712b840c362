package tunnel

// congestion is empty: macOS has no BBR. Its sockets keep the system's algorithm, and recordings use several of them.
const congestion = ""

func setCongestion(uintptr, string) error { return nil }
