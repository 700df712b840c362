// Package residency is the register of what is kept where: one table ([Register]) of which the public documents are printed, by which the running system is checked
// at its start, and that says of each table, column, setting, folder, cache key and outbound host what it belongs to. Whatever is in none of its rows
// fails a test.
//
//	register.go   the categories: store, places, basis of a transfer, retention, processor
//	owned.go      what of the program belongs to which category, a line each
//	check.go      whether what is configured is where its category has to be
//	report.go     the register with what is known of the running system
//	render.go     docs/data-residency.md and docs/sub-processors.md
//
// What customers have been promised is the page "Data residency"; where it contradicts itself or the program, [Contradictions] says which rule is followed.
//
// Out of scope: the connections themselves (package outbound), SQL (pgstore), objects (recorder).
package residency

import (
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Name names a category; it is stored in the audit log and sent, so that one is never given another meaning.
type Name string

// Categories.
const (
	Account      Name = "account"
	APIKeys      Name = "api_keys"
	Sessions     Name = "sessions"
	Profiles     Name = "profiles"
	ProfileState Name = "profile_state"
	Recordings   Name = "recordings"
	Audit        Name = "audit"
	Webhooks     Name = "webhooks"
	Stripe       Name = "stripe"
	NowPayments  Name = "nowpayments"
	Cache        Name = "cache"
	Errors       Name = "errors"
	Email        Name = "email"
	Execution    Name = "execution"
	Model        Name = "language_model"
	Text         Name = "customer_text"
	// None is no category: what holds nothing of a customer, with the reason.
	None Name = ""
)

// Category is a row of the register.
type Category struct {
	Name      Name
	Title     string // as the page calls it
	Holds     string
	Store     Store
	Places    []Allowance // nothing of it is anywhere else
	Retention Retention
	Keeper    Keeper
}

// Store is what a category is kept in.
type Store struct {
	Kind       Kind
	Processor  string // a row of Processors
	Protection string
}

// Kind is a kind of store.
type Kind string

// Kinds of stores.
const (
	Postgres Kind = "Postgres"
	Volume   Kind = "EU volume of the orchestrator"
	Objects  Kind = "object storage"
	Redis    Kind = "Redis"
	Transit  Kind = "in transit"
	Service  Kind = "the processor's service"
)

// Keeper is which of Driftstack's programs has a category, and connects to where it is.
type Keeper string

// Keepers.
const (
	Orchestrator Keeper = "orchestrator"
	APIServer    Keeper = "API server" // nothing in this program connects there
	Both         Keeper = "API server and orchestrator"
)

// Allowance is a region that a category may be in, for whom, and on what ground.
type Allowance struct {
	Region place.Region
	For    Condition
	Basis  Basis
}

// Condition is for which accounts an allowance is.
type Condition string

// Conditions.
const (
	Everyone     Condition = "every account"
	IfReplicated Condition = "accounts with replicated recordings"
	IfBundled    Condition = "accounts that opted in to the bundled language model"
	IfBYOK       Condition = "accounts that use a language model under their own key"
	IfPaying     Condition = "accounts that pay this way"
)

// Basis is the ground of a transfer out of the EU.
type Basis string

// Bases.
const (
	InsideEU    Basis = "none needed: it stays in the EU"
	Contractual Basis = "SCCs + EU-US DPF"
	Customers   Basis = "the customer's own contract with the provider"
)

// Retention is how long a category is kept.
type Retention struct {
	For   time.Duration // 0: no fixed time
	From  string        // what For counts from; or, without one, how long
	Today bool          // this program sees to it
}

// Processor is who processes data for Driftstack.
type Processor struct {
	Name     string
	Country  string // of the machines that process it
	Purpose  string
	Transfer Basis
}

// Contradiction is where the page says two things that cannot both be, or one that the program does not do, and what is done.
type Contradiction struct {
	Says, ButAlso, Rule string
}
