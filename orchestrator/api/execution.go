package api

// Execution is where an account's sessions with a profile may run.
type Execution string

// Executions.
const (
	ExecutionAny Execution = "any"
	ExecutionEU  Execution = "eu" // on devices whose host declares a member state of the EU
)

// ProfileExecution is an account's setting.
type ProfileExecution struct {
	Account          string    `json:"account"`
	ProfileExecution Execution `json:"profile_execution" enum:"any,eu" doc:"Where its sessions with a profile may run: on any device, or on those alone whose declared country is a member state of the EU."`
}

// PutProfileExecution is the body of PUT /v1/accounts/{id}/profile-execution.
type PutProfileExecution struct {
	ProfileExecution Execution `json:"profile_execution" enum:"any,eu"`
	Reason           string    `json:"reason,omitempty" maxLength:"256" doc:"Why; it goes into the audit log. Nothing of a customer belongs here."`
}
