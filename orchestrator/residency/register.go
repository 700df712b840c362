package residency

import (
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

const day = 24 * time.Hour

func inEU() []Allowance { return []Allowance{{place.EU, Everyone, InsideEU}} }

// Register is every category of data there is, in the order of the page.
func Register() []Category {
	database := Store{Postgres, "Neon", "encrypted by the provider; TLS to a verified host"}
	erased := Retention{30 * day, "an account's deletion", false}
	return []Category{
		{Account, "Account row", "email, tier, slug, region preference, MFA secret, where its recordings are kept, quotas", Store{Postgres, "Neon", "the MFA secret is sealed with AES-256 under MFA_ENCRYPTION_KEY"}, inEU(), erased, Both},
		{APIKeys, "API keys", "the hash of each key, its name, last use and expiry", Store{Postgres, "Neon", "scrypt, N = 2^15; a key's plaintext is never stored"}, inEU(), erased, Both},
		{Sessions, "Sessions metadata", "lifecycle rows and events; no payload, by type", database, inEU(), erased, Orchestrator},
		{Profiles, "Profile metadata", "name, archetype, description; sizes, digests and origins of generations", database, inEU(), erased, Orchestrator},
		{ProfileState, "Profile state blob", "cookies and localStorage, and the wrapped keys that open them", Store{Volume, "Hetzner", "AES-256-GCM a generation; keys wrapped, in a database of their own"}, inEU(), Retention{0, "until the profile's deletion; older generations as new ones are saved", true}, Orchestrator},
		{Recordings, "Session recordings", "WebM of a session's screen; on the EU volume until it is stored", Store{Objects, "Cloudflare", "encrypted at rest by the storage; presigned URLs of at most an hour"},
			[]Allowance{{place.EU, Everyone, InsideEU}, {place.US, IfReplicated, Contractual}}, erased, Orchestrator},
		{Audit, "Audit log entries", "what operators and the system did, who and why", Store{Postgres, "Neon", "append-only: a trigger refuses changes"}, inEU(), Retention{0, "as long as the account's tier says", false}, Orchestrator},
		{Webhooks, "Webhook deliveries", "payload and the beginning of the response", database, inEU(), Retention{7 * day, "the delivery", false}, APIServer},
		{Stripe, "Stripe customer / payment data", "card data is Stripe's alone; the customer id links an account to it", Store{Service, "Stripe", "no card number reaches Driftstack"},
			[]Allowance{{place.EU, IfPaying, InsideEU}, {place.US, IfPaying, Contractual}}, Retention{0, "as Stripe's policy says; our link until the account's deletion", false}, APIServer},
		{NowPayments, "NowPayments order metadata", "payment id and status", Store{Service, "NowPayments", "what is on a chain stays there"},
			[]Allowance{{place.EU, IfPaying, InsideEU}}, Retention{0, "as NowPayments' policy says; our link until the account's deletion", false}, APIServer},
		{Cache, "Cache", "authentications, rate-limit counters, MFA challenges", Store{Redis, "Upstash", "TLS to a verified host"}, inEU(), Retention{5 * time.Minute, "its writing, at most", false}, Both},
		{Errors, "Error events", "errors of the code, with redacted bodies and without e-mail addresses", Store{Service, "Sentry", "a filter before sending"}, inEU(), Retention{0, "as the project is set at Sentry", false}, APIServer},
		{Email, "Email delivery", "recipient's address and the template's values", Store{Service, "Postmark", "TLS"}, inEU(), Retention{0, "as the server is set at Postmark", false}, APIServer},
		{Execution, "Session execution", "commands, pages and what a restored profile holds, while a session runs on a phone", Store{Transit, "MacStadium", "WireGuard between the orchestrator and the Mac; the phone is wiped before its next session"},
			[]Allowance{{place.EU, Everyone, InsideEU}, {place.US, Everyone, Contractual}}, Retention{0, "until the session's end", true}, Orchestrator},
		{Model, "Language model", "prompts and completions", Store{Service, "Anthropic", "off unless an account turns it on"},
			[]Allowance{{place.US, IfBundled, Contractual}, {place.Customers, IfBYOK, Customers}}, Retention{0, "as the provider's terms say", false}, APIServer},
		{Text, "Text that customers choose", "names and labels of sessions, capabilities, idempotency keys", Store{Postgres, "Neon", "kept out of events, logs, metrics and the audit log; capabilities are sealed with AES-256-GCM while their session is queued, and deleted when it runs"}, inEU(), erased, Orchestrator},
	}
}

// Processors are who processes data for Driftstack: the list of sub-processors.
func Processors() []Processor {
	return []Processor{
		{"Hetzner", "DE", "servers and volumes of the API server and the orchestrators (Falkenstein, Nuremberg)", InsideEU},
		{"Neon", "DE", "Postgres", InsideEU},
		{"Upstash", "IE, DE", "Redis", InsideEU},
		{"Cloudflare", "EU; US for accounts with replicated recordings", "object storage (R2)", Contractual},
		{"MacStadium", "US", "Macs and iPhones that sessions run on", Contractual},
		{"Anthropic", "US", "bundled language model, where an account opts in", Contractual},
		{"Stripe", "IE; US for its own sub-processors", "payments", Contractual},
		{"NowPayments", "EE", "payments", InsideEU},
		{"Sentry", "DE", "error events", InsideEU},
		{"Postmark", "EU", "transactional e-mail", InsideEU},
	}
}

// Contradictions are those of the page, with itself and with what can be.
func Contradictions() []Contradiction {
	return []Contradiction{
		{"Session-execution traffic between the API server, the browser driver and the customer's target URL never leaves the EU.",
			"The iPhone fleet runs on MacStadium hardware (US).",
			"Session execution is in the US: commands, pages and the plaintext of a restored profile cross to the Mac in a WireGuard tunnel, under SCCs + EU-US DPF, and the phone talks to the target URL from there. What is stored of it (metadata, sealed profiles, recordings) is stored as its own row says. An account can require devices in the EU for its sessions with a profile."},
		{"Profile state blobs are on the driver host (EU).",
			"The driver hosts are at MacStadium (US).",
			"Profile files are on the orchestrators' EU volume, sealed there and opened there. On the driver host a profile is in the browser of its session alone, and wiped with its end."},
		{"Object storage is geo-replicated across Cloudflare's EU + US regions.",
			"Single-region (EU-only) R2 on request.",
			"Each account is one of the two. replicated: a copy in each region. eu: no byte of a recording is sent to the US, and the US copies of an account that is changed to it are removed. R2 itself replicates nothing between the two: the second copy is a second upload of ours."},
		{"Presigned URL access is location-agnostic.",
			"EU-only storage.",
			"A URL names the host of one copy, in its region. Where it is opened is its holder's choice; the storage does not send the recording anywhere by itself."},
		{"Recordings have object-level S3-SSE.",
			"R2 refuses the header of S3-SSE: it encrypts every object at rest, always.",
			"Encryption at rest is checked at start, as the storage does it."},
		{"Sessions metadata holds no payload.",
			"A queued session has capabilities, and sessions have names and labels: text that customers write.",
			"It is a category of its own: capabilities are sealed until the session runs and then deleted (what the driver made of them is kept while it runs), names and labels are kept as long as the session is listed, and none of it is in events, logs, metrics or the audit log."},
		{"Stripe (US).",
			"Stripe Payments Europe Ltd (Ireland) is the contracted entity.",
			"It is taken for a transfer to the US."},
		{"Audit log entries are append-only.",
			"The audit log of a deleted account is purged after 30 days.",
			"Nothing but an account's erasure may remove entries; this program has no such erasure yet, and removes none."},
		{"The list of sub-processors is at /trust/sub-processors.",
			"The list of sub-processors is at /legal/sub-processors.",
			"It is docs/sub-processors.md, which is printed from the register."},
	}
}
