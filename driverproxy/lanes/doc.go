// Package lanes carries one recording over several sockets at once, its lanes: an ocean away one TCP stream with a little
// loss carries less than its share of the line, and the sender (macOS, or a network stack in the process) has no better
// congestion control to offer.
//
//	Pump ──Send──▶ window ──▶ lane 0 ══▶ ┐
//	                     ├──▶ lane 1 ══▶ ├─ by offset ──▶ Receive ──▶ Ingest
//	                     └──▶ lane n ══▶ ┘
//	Pump ◀─Receive── ack ◀───────── any lane ◀── Ack (on disk)
//
// [Sender] is the host's end. A recording begins with one lane. Another is dialled, in the background, only when bytes wait although
// every lane is full: a small or idle recording has one socket. Twice as many may be dialled as there are, up to
// Config.Lanes; one that carried nothing for a while is closed again. Each chunk goes to the first lane that
// is free, which is one with less than laneWindow on its way, so that nothing waits behind a stalled lane. Chunks are kept until they
// are acknowledged (their memory is the caller's own): those of a lane that breaks go again over the others. When the last lane
// breaks, it is dialled anew for a while, and the recording goes on.
//
// [Receiver] is the orchestrator's end. It gives chunks out in order, and each byte once. What comes before its turn
// is kept, at most wire.RecordingWindow bytes, and confirmed on the lane it came by (wire.Held): an acknowledgement means
// that the bytes are on disk, and waits for all bytes before them. A host never has more than that window unacknowledged, so a
// chunk beyond it, or one that overlaps another, is an error that ends the recording: a hostile one has that window, and one message
// (wire.MaxChunkData) for each lane. A lane that brings a chunk whose checksum does not hold is closed, so that it is
// sent again; a host that does so more than a few times is not listened to any more. A lane that cannot be written to any more is read to its end. The end counts once all bytes
// before it are here.
//
// Measured through a tunnel of two netstack ends (cubic, RACK, 8 MiB buffers) at 130 ms round trip and 0.1 % loss, MB/s, two seeds: 1 lane
// 0.7-0.9, 2 lanes 1.5-2.0, 4 lanes 2.9-3.0, 8 lanes 3.6-5.3; a stock netstack stream 0.4-0.5. The default is 4: more than twenty
// times what an encoder of 1 Mbit/s writes, and a fair neighbour to the commands on the same line.
//
// Out of scope: what the bytes are (recorder), reading and bounding what the encoder writes (recorder/capture), who may
// dial (driverproxy).
package lanes
