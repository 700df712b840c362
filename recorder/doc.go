// Package recorder is the EU end of a session's recording: it takes the live WebM of a driver host, keeps every byte it
// acknowledged on an EU volume, and lands the finished file in object storage, in the EU only or in the EU and the US.
//
//	host ──chunks──▶ Ingest ──▶ spool (body.webm, log) ──parts──▶ EU bucket
//	     ◀──acks────  fdatasync        │                └─parts──▶ US bucket   (placement replicated only)
//	                                 Seal: cut, cues, head
//
// # The spool
//
// A recording is a folder Config.Dir/<id>/:
//
//	body.webm   a head slot of 4096 bytes, then the clusters exactly as received, then (once sealed) the cue index
//	log         append-only, CRC-framed: spec, head, checksums of what was received, uploads and parts of each copy, seal
//	lock        flocked by the process that works on it: a second orchestrator on the same volume leaves it alone
//	ballast     space kept back so that a recording can be sealed on a full volume
//
// body.webm plays at any moment: until it is sealed the slot holds a live head, afterwards one with duration and index.
// A byte is acknowledged only after fdatasync, and the folder is deleted only when every copy is verified, or another spool
// goes on with it. What a crash leaves unsealed is for whoever adopts its session: [Recorder.Adopt] copies what was acknowledged to a
// spool of a higher term. Once the session has ended it is cut to its last complete cluster and sealed as partial. A spool that
// contradicts itself moves to Config.Dir/.quarantine and stops nobody else.
//
// # Upload
//
// Parts of equal size go up while the session runs, but only bytes up to the last complete cluster, so that no cut can ever
// reach a part that was sent. The first part is provisional (its head says nothing of the end) and is sent again
// at the end, which makes the object seekable with at most two parts sent after the stop. A recording shorter than one part is
// one conditional put. While storage is down everything is retried for ever; parts cannot be read back from R2,
// so the spool is what everything is rebuilt from.
//
// A process that died may have begun an upload, or sent a part, that its log does not know: the next one asks the storage.
//
// # What lies in storage
//
// Nothing is sent to a bucket before it was seen where it has to be, and not where it must not be. Then a sweep looks after it: uploads that nothing
// can become of are aborted, and copies that are not what the journal says are put back ([Sweeps]).
//
// Copies to the EU and to the US are built from different types of target: the plan of a recording of placement eu has no place
// where a US target could be put.
//
// Out of scope: capturing (recorder/capture, on the host), the container (recorder/webm), sockets (driverproxy), where states
// are stored ([Journal], implemented by orchestrator/pgstore), retention and erasure of finished objects.
package recorder
