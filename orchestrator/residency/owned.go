package residency

import (
	"strings"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Database is one of the two.
type Database string

// Databases.
const (
	Main Database = "main" // --database-url
	Keys Database = "keys" // --key-database-url
)

// Columns are columns of one table that belong to one category. A table may have several such lines; each of its columns is in one.
type Columns struct {
	Database Database
	Table    string
	Category Name
	Names    []string
	Why      string // with None: why nothing in them is a customer's
}

func columns(db Database, table string, c Name, names string, why ...string) Columns {
	return Columns{db, table, c, strings.Fields(names), strings.Join(why, "")}
}

// Schema says of every column of both databases what it belongs to. A new column is a word in one of these lines, a new table a line.
func Schema() []Columns {
	return []Columns{
		columns(Main, "accounts", Account, "id recordings created_at"),
		columns(Main, "account_load", Account, "account queued active recent stretch pass busy_ms max_active max_queued max_creates weight profile_execution"),
		columns(Main, "lanes", Account, "account want pass open"),

		columns(Main, "sessions", Sessions, "id account profile profile_mode forked_from want want_kind want_model want_host want_os want_platform want_browser want_bidi want_country priority piece "+
			"recording placement idle_seconds max_seconds command_seconds queue_until state reason detail cancelled end_as term holder waiter confirmed lease_until host device generation created_at started_at running_at ended_at"),
		columns(Main, "sessions", Text, "name labels want_labels want_caps caps"),
		columns(Main, "session_events", Sessions, "session seq at kind term route status took_us driver_us bytes_in bytes_out reason generation restored altered dropped captured kept removed partial"),
		columns(Main, "idempotency_keys", Sessions, "account request session created_at"),
		columns(Main, "idempotency_keys", Text, "key"),
		columns(Main, "wants", Sessions, "id digest kind model host platform least below browser bidi country countries used_at"),
		columns(Main, "wants", Text, "labels"),

		columns(Main, "profiles", Profiles, "id account name archetype description generation last_generation created_at deleted_at"),
		columns(Main, "generations", Profiles, "profile number file digest bytes previous term volume state reason source session created_at"),
		columns(Main, "destroyed_keys", ProfileState, "account profile epoch at"),
		columns(Keys, "account_keys", ProfileState, "account epoch root wrapped changed_at"),
		columns(Keys, "profile_keys", ProfileState, "account profile epoch wrapped changed_at"),
		columns(Keys, "destroyed_keys", ProfileState, "account profile epoch at"),

		columns(Main, "recordings", Recordings, "id session account term placement state partial cause key bytes duration_ms sha256 started_at updated_at"),
		columns(Main, "recording_copies", Recordings, "recording region bucket state etag verified_at check_at checked_at damage damaged_at removal_tried_at removed_at repairs abandoned_at"),

		columns(Main, "audit", Audit, "id at actor action host device session reason detail account"),

		columns(Main, "devices", Sessions, "session"),
		columns(Main, "devices", None, "host name kind model platform_name platform_version labels state reason used_at browser bidi cordoned_at cordoned_by cordon_reason host_cordoned closed country shape",
			"the fleet: what operators say of their phones"),
		columns(Main, "shapes", None, "id digest kind model platform_name platform_version version browser bidi labels country", "the fleet: kinds of devices"),
		columns(Main, "hosts", None, "name number join_public_key join_psk join_expires_at public_key psk seen_at created_at offer ciphertext next_public_key next_psk next_offer next_ciphertext rotate rotated_at "+
			"revoked_at pulsed_at pulsed_to pulse_reason cordoned_at cordoned_by cordon_reason drain_until", "the fleet: driver hosts and their tunnel keys"),
		columns(Main, "host_links", None, "host orchestrator heard_at written_at round_trip gateway backend mtu handshake_at rx_bytes tx_bytes repairs_handshake repairs_socket repairs_resolve repairs_device repaired_at "+
			"lost_at goodbye reason damped_until losses", "the fleet: how tunnels do, in sums over all sessions"),
		columns(Main, "gateways", None, "orchestrator number endpoint fleet_port public_key next_public_key next_at rotate rotate_in rotated_at seen_at", "the fleet: the orchestrators' ends of tunnels, public keys"),
		columns(Main, "resting_numbers", None, "number host until", "the fleet: tunnel addresses not to be given again yet"),
		columns(Main, "replicas", None, "id orchestrator url volume started_at seen_at", "the orchestrators' own processes"),
		columns(Main, "want_shapes", Sessions, "want shape host"),
		columns(Main, "virtual_time", None, "last_value", "how far the fleet's turns are"),
		columns(Main, "queue_room", None, "piece queued", "how many sessions are queued, of all accounts"),
		columns(Main, "goose_db_version", None, "id version_id is_applied tstamp", "which migrations were made"),
		columns(Keys, "goose_db_version", None, "id version_id is_applied tstamp", "which migrations were made"),
	}
}

// Setting is a flag of cmd/orchestrator that says where something is or goes: a host, an address, a folder, a bucket.
type Setting struct {
	Flag     string
	Category Name
	Why      string // with None
}

// Settings says of every flag of cmd/orchestrator that takes text what it leads to. Numbers, times and choices from a list lead nowhere.
func Settings() []Setting {
	return []Setting{
		{"database-url", Sessions, ""}, // the account row and all else that the register has in Postgres are in the same
		{"key-database-url", ProfileState, ""},
		{"state-dir", ProfileState, ""}, // profiles; spools of recordings beside them
		{"location", ProfileState, ""},
		{"own-network", Sessions, ""},
		{"eu-s3-account", Recordings, ""},
		{"eu-s3-bucket", Recordings, ""},
		{"eu-s3-endpoint", Recordings, ""},
		{"us-s3-account", Recordings, ""},
		{"us-s3-bucket", Recordings, ""},
		{"us-s3-endpoint", Recordings, ""},
		{"peer-url", Execution, ""},
		{"tunnel-endpoint", Execution, ""},

		{"name", None, "a name of ours"},
		{"http-addr", None, "it is listened on"},
		{"metrics-addr", None, "it is listened on; what is served names no account and no session"},
		{"private-dir", None, "this process's tunnel key"},
		{"tunnel-interface", None, "a network interface of this machine"},
		{"service-token", None, "a credential"},
		{"profile-root-key", None, "a key; it is not stored by being given"},
		{"eu-s3-access-key", None, "a credential"},
		{"eu-s3-secret-key", None, "a credential"},
		{"eu-s3-encryption", None, "a declaration about the storage"},
		{"us-s3-access-key", None, "a credential"},
		{"us-s3-secret-key", None, "a credential"},
		{"us-s3-encryption", None, "a declaration about the storage"},
	}
}

// File is a name in --state-dir or --private-dir, or one that begins with it where it ends with a *.
type File struct {
	Name     string
	Category Name
	Why      string // with None
}

// Files says of everything at the top of the orchestrator's folders what it belongs to.
func Files() []File {
	return []File{
		{"profiles", ProfileState, ""},
		{"profile-root.key*", ProfileState, ""}, // with its lock and its copy on the way
		{"spool", Recordings, ""},
		{"gateway.key*", None, "this process's tunnel key"},
	}
}

// Host is where this program connects to, as it is written in the register: * is one label of a name.
type Host struct {
	Pattern  string
	Category Name
	Region   place.Region
}

// Hosts are all of them. Addresses in --own-network come in addition, for the stores that may be there; driver hosts are reached
// through the tunnel, and dial themselves.
func Hosts() []Host {
	return []Host{
		{"*.eu-central-1.aws.neon.tech", Sessions, place.EU},
		{"*.c-*.eu-central-1.aws.neon.tech", Sessions, place.EU},
		{"*" + place.R2EU, Recordings, place.EU},
		{"*" + place.R2US, Recordings, place.US}, // and the EU bucket is looked for there at start, where it must not be
		{"eu1-*.upstash.io", Cache, place.EU},
		{"eu2-*.upstash.io", Cache, place.EU},
		{"o*.ingest.de.sentry.io", Errors, place.EU},
	}
}

// CacheKey is how the keys of a category in the cache begin.
type CacheKey struct {
	Prefix   string
	Category Name
}

// CacheKeys are all of them. Whatever writes into the cache takes its key from here, or a test that reads the cache finds an orphan.
func CacheKeys() []CacheKey { return nil }

// OfCacheKey is the category that a key in the cache belongs to. Each belongs to one: no prefix begins with another.
func OfCacheKey(key string) (Name, bool) {
	for _, k := range CacheKeys() {
		if strings.HasPrefix(key, k.Prefix) {
			return k.Category, true
		}
	}
	return None, false
}

// OfFile is the line that a name at the top of the orchestrator's folders belongs to.
func OfFile(name string) (File, bool) {
	for _, f := range Files() {
		prefix, open := strings.CutSuffix(f.Name, "*")
		if name == f.Name || open && strings.HasPrefix(name, prefix) {
			return f, true
		}
	}
	return File{}, false
}
