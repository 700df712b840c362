package api

import "time"

// Residency is the register of what is kept where, with what is known of the running system.
type Residency struct {
	Account        string                   `json:"account,omitempty" doc:"Whose; absent: everybody's."`
	At             time.Time                `json:"at"`
	Location       string                   `json:"location" doc:"Member state of the EU that the orchestrator is in, as declared; not verified."`
	Verified       bool                     `json:"verified" doc:"The stores were asked, instead of what the database knows of them."`
	Categories     []ResidencyCategory      `json:"categories"`
	Processors     []ResidencyProcessor     `json:"processors"`
	Contradictions []ResidencyContradiction `json:"contradictions" doc:"Of the public page, with the rule that is followed."`
	Problems       []string                 `json:"problems" doc:"What is not where it has to be, or could not be looked at."`
}

// ResidencyCategory is a row of the register.
type ResidencyCategory struct {
	Name       string               `json:"name"`
	Title      string               `json:"title"`
	Holds      string               `json:"holds"`
	Store      string               `json:"store"`
	Processor  string               `json:"processor"`
	Protection string               `json:"protection"`
	Keeper     string               `json:"keeper"`
	Retention  string               `json:"retention"`
	Allowed    []ResidencyAllowance `json:"allowed" doc:"Nothing of it is anywhere else. Of an account, only what is allowed for it."`
	Places     []ResidencyPlace     `json:"places" doc:"Where it is."`
	Absent     string               `json:"absent,omitempty" doc:"Why it is nowhere that this program knows."`
}

// ResidencyAllowance is a region that a category may be in.
type ResidencyAllowance struct {
	Region string `json:"region" enum:"eu,us,customer"`
	For    string `json:"for"`
	Basis  string `json:"basis"`
}

// ResidencyPlace is where something of a category is.
type ResidencyPlace struct {
	Setting   string             `json:"setting"`
	Host      string             `json:"host"`
	Region    string             `json:"region" enum:"eu,us,customer"`
	Country   string             `json:"country,omitempty"`
	Known     string             `json:"known" doc:"How it is known that it is there."`
	Holds     []ResidencyHolding `json:"holds"`
	Evidence  []string           `json:"evidence,omitempty" doc:"What the store said of itself."`
	CheckedAt *time.Time         `json:"checked_at,omitempty" doc:"When it was last looked at."`
}

// ResidencyHolding is how much of something there is.
type ResidencyHolding struct {
	What  string `json:"what" doc:"A table's rows by its name, or objects or files."`
	Count int64  `json:"count"`
	More  bool   `json:"more,omitempty" doc:"There are more: counting stopped."`
	Bytes int64  `json:"bytes,omitempty"`
}

// ResidencyProcessor is a sub-processor.
type ResidencyProcessor struct {
	Name    string `json:"name"`
	Country string `json:"country"`
	Purpose string `json:"purpose"`
	Basis   string `json:"basis"`
}

// ResidencyContradiction is where the public page says two things that cannot both be.
type ResidencyContradiction struct {
	Says    string `json:"says"`
	ButAlso string `json:"but_also"`
	Rule    string `json:"rule"`
}
