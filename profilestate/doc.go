// Package profilestate keeps the logins of a profile: its cookies and localStorage.
//
// A [Snapshot] is that state as Playwright's storageState. A [Store] seals snapshots into files in the EU, one
// immutable file a generation, and opens them again. [Restore] puts a snapshot into a browser and [Capture] takes one
// out, over W3C WebDriver commands.
//
//	Load ──▶ Snapshot ──▶ Restore ──▶ (the customer's session) ──▶ Capture ──▶ Snapshot ──▶ Commit
//	  ▲                      │ Report: what the browser really has ──▶ ▲                      │
//	  └───────────────── Index: the one current generation of a profile ◀─────────────────────┘
//
// # What a login survives
//
// A file is created under a name no one else uses, written, flushed, and becomes the profile's current generation by
// one compare-and-swap in the [Index] under the session's lease term. A crash, a lost race or a lost lease at any point
// leaves the generation before it current and whole. Every file is bound to its region, account, profile, generation,
// term and predecessor by its header, which is the associated data of the encryption; its length and digest are kept in
// the Index, so an older file under the right name is refused too. What is found to be damaged is quarantined, and the
// newest older generation that opens is offered; going back is its owner's decision.
//
// A capture merges by what it could observe. Something leaves the profile only when a restore confirmed that the browser
// had it and a page from which it must be seen no longer showed it. An unknown state is never an absence.
//
// The Report of a restore is sealed into a file of its session while that runs, so that a session which another process goes
// on with is captured as well as any.
//
// # Keys
//
//	RootKey (epochs) ──wraps──▶ AccountKey (epoch n) ──wraps──▶ data keys of a profile ──seal──▶ generations
//	file, environment, KMS          KeyStore                        KeyStore                     Store
//
// A [Keyring] holds them together. Region, account, profile and epoch are the associated data of each wrapping. Rotation wraps
// anew and touches no file. What was destroyed is in two ledgers, one beside the keys and one apart: a key that either
// has opens nothing, whatever it was restored from, and its number is not used again.
//
// # Sealed file, format version 2
//
//	offset size
//	     0    8 magic "DSPROFIL"
//	     8    2 format version
//	    10    2 header size, 208
//	    12    8 region, padded with zeros
//	    20   65 account: length, then 64 bytes padded with zeros
//	    85   65 profile: likewise
//	   150    8 generation
//	   158    4 key epoch: the id of the data key in the profile's keyset
//	   162    8 lease term of the writer; 0 where no session wrote it
//	   170   32 digest of the previous generation's file; zeros for the first
//	   202    6 zeros
//	   208    … Tink streaming AEAD, AES256_GCM_HKDF_4KB; the 208 bytes above are its associated data
//
// Numbers are big-endian. The digest is that of length, header, stream head and the tags of all segments.
//
// Out of scope: who may use a profile and when (the orchestrator's lease), where generations and wrapped keys are kept
// (pgstore, behind [Index] and [KeyStore]), sessionStorage, IndexedDB, service workers and partitioned cookies (drivers
// do not show them), and wiping the device afterwards (driverproxy/host).
package profilestate
