package orchestrator

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Capabilities are text that customers write, and wait in the database while their session is queued. They are sealed there, as a JSON string in the place of
// the object, for their session alone, and deleted when it runs. Without a store of profiles there is no key: they are kept as they are, as benches have it, and as orchestrators
// from before this did.

// sealCapabilities is what is stored of them.
func (o *Orchestrator) sealCapabilities(n NewSession) (json.RawMessage, error) {
	if len(n.Capabilities) == 0 || o.deps.Profiles == nil {
		return n.Capabilities, nil
	}
	sealed, err := o.deps.Profiles.SealText(n.Account, n.ID, n.Capabilities)
	if err != nil {
		return nil, fmt.Errorf("seal capabilities: %w", err)
	}
	return json.Marshal(sealed) // base64
}

// openCapabilities is the other way round.
func (o *Orchestrator) openCapabilities(c Claim) (json.RawMessage, error) {
	if len(c.Capabilities) == 0 || c.Capabilities[0] != '"' {
		return c.Capabilities, nil
	}
	var sealed []byte
	err := json.Unmarshal(c.Capabilities, &sealed)
	if err == nil && o.deps.Profiles == nil {
		err = errors.New("there is no store of profiles, which has the key")
	}
	var text []byte
	if err == nil {
		text, err = o.deps.Profiles.OpenText(c.Account, c.Session, sealed)
	}
	if err != nil {
		return nil, fmt.Errorf("open capabilities: %w", err)
	}
	return text, nil
}
