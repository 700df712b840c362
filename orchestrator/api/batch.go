package api

// Batch is a list of W3C commands that runs beside the browser, in one round trip. What the fields mean is told at length in docs/commands.md;
// package driverproxy/batch reads it.
type Batch struct {
	Steps       []BatchStep `json:"steps" minItems:"1" maxItems:"256" doc:"Run one after the other."`
	StopOnError bool        `json:"stop_on_error,omitempty" default:"true" doc:"After a step that failed, run no other. With false, steps that do not refer to it are run."`
	WithinMS    int         `json:"within_ms,omitempty" minimum:"1" maximum:"3600000" doc:"After so long begin no further step: the others are not_run. By default the batch goes on however long it takes."`
}

// BatchStep is a command, or a wait.
type BatchStep struct {
	Name   string     `json:"name,omitempty" pattern:"^[A-Za-z_][A-Za-z0-9_-]*$" doc:"For references of later steps: name or name#/json/pointer."`
	Method string     `json:"method,omitempty" enum:"GET,POST,DELETE"`
	Path   string     `json:"path,omitempty" doc:"What follows /session/{session id}. A segment {name} or {name#/json/pointer} stands for the element, shadow root, frame, window or text that an earlier step has."`
	Body   any        `json:"body,omitempty" doc:"Of a POST; {} if absent. An object that is exactly {\"$ref\": \"name#/json/pointer\"} is replaced by the value of an earlier step."`
	Wait   *BatchWait `json:"wait,omitempty" doc:"Instead of a command."`
}

// BatchWait waits until an element is present, or a script returns something truthy.
type BatchWait struct {
	Element   *BatchLocator `json:"element,omitempty" doc:"Wait until it is there; the step's value is the element."`
	Script    string        `json:"script,omitempty" doc:"Wait until it returns something truthy, which is the step's value."`
	Args      []any         `json:"args,omitempty" doc:"Of the script; may have references."`
	TimeoutMS int           `json:"timeout_ms,omitempty" minimum:"0" maximum:"300000" doc:"Then the step is a W3C timeout; default 10000."`
	EveryMS   int           `json:"every_ms,omitempty" minimum:"0" maximum:"5000" doc:"How long after an answer it asks again, at least 10; default 50."`
}

// BatchLocator says which element, as W3C Find Element does.
type BatchLocator struct {
	Using string `json:"using" doc:"css selector, xpath, link text, partial link text or tag name."`
	Value string `json:"value"`
}

// BatchResponse is what became of a batch.
type BatchResponse struct {
	Results []BatchResult `json:"results" doc:"One for each step, in order."`
	OK      bool          `json:"ok" doc:"Every step has a status below 400."`
}

// BatchResult is what became of a step.
type BatchResult struct {
	Status  int    `json:"status,omitempty" doc:"HTTP status, as the driver would have answered the command; absent if it was not run."`
	Value   any    `json:"value,omitempty" doc:"Of the W3C envelope: what the command returned, or its W3C error."`
	TookUS  int64  `json:"took_us,omitempty" doc:"Microseconds, beside the driver."`
	Outcome string `json:"outcome,omitempty" enum:"not_run,unknown" doc:"Absent: it was answered. not_run: it never reached the driver. unknown: the driver was lost while it ran."`
	Reason  string `json:"reason,omitempty" doc:"Why it was not run."`
}
