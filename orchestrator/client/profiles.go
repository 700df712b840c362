package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/driftstack/fleet/orchestrator/api"
)

func profilePath(id string, more ...string) string {
	p := "/v1/profiles/" + url.PathEscape(id)
	for _, m := range more {
		p += "/" + url.PathEscape(m)
	}
	return p
}

// CreateProfile creates an empty profile.
func (c *Client) CreateProfile(ctx context.Context, p api.CreateProfile) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodPost, "/v1/profiles", p, &v)
}

// Profile is a profile's metadata.
func (c *Client) Profile(ctx context.Context, id string) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodGet, profilePath(id), nil, &v)
}

// Profiles lists the profiles of an account, or all.
func (c *Client) Profiles(ctx context.Context, account string) ([]api.Profile, error) {
	var l api.ProfileList
	err := c.call(ctx, http.MethodGet, "/v1/profiles?account="+url.QueryEscape(account), nil, &l)
	return l.Profiles, err
}

// ChangeProfile changes a profile's metadata.
func (c *Client) ChangeProfile(ctx context.Context, id string, p api.ChangeProfile) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodPatch, profilePath(id), p, &v)
}

// DeleteProfile deletes a profile for ever.
func (c *Client) DeleteProfile(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, profilePath(id), nil, nil)
}

// CloneProfile creates a profile with the state of another.
func (c *Client) CloneProfile(ctx context.Context, id string, p api.CloneProfile) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodPost, profilePath(id, "clone"), p, &v)
}

// RollbackProfile goes back to the newest older generation that opens.
func (c *Client) RollbackProfile(ctx context.Context, id string) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodPost, profilePath(id, "rollback"), nil, &v)
}

// Generations lists a profile's saved states, newest first.
func (c *Client) Generations(ctx context.Context, id string) ([]api.Generation, error) {
	var l api.GenerationList
	err := c.call(ctx, http.MethodGet, profilePath(id, "generations"), nil, &l)
	return l.Generations, err
}

// PromoteGeneration makes a generation the current one.
func (c *Client) PromoteGeneration(ctx context.Context, id string, number int64) (v api.Profile, err error) {
	return v, c.call(ctx, http.MethodPost, profilePath(id, "generations", strconv.FormatInt(number, 10), "promote"), nil, &v)
}

// DeleteGeneration deletes a generation that is not current.
func (c *Client) DeleteGeneration(ctx context.Context, id string, number int64) error {
	return c.call(ctx, http.MethodDelete, profilePath(id, "generations", strconv.FormatInt(number, 10)), nil, nil)
}

// ImportProfile makes a storageState, as Playwright writes it, the profile's next generation.
func (c *Client) ImportProfile(ctx context.Context, id string, storageState io.Reader) (v api.Profile, err error) {
	b, err := io.ReadAll(storageState)
	if err != nil {
		return v, err
	}
	return v, c.raw(ctx, http.MethodPut, profilePath(id, "storage-state"), "application/json", b, &v)
}

// ExportProfile writes a generation as storageState, as Playwright reads it; number 0 is the current one.
func (c *Client) ExportProfile(ctx context.Context, id string, number int64, w io.Writer) error {
	return c.download(ctx, fmt.Sprintf("%s?generation=%d", profilePath(id, "storage-state"), number), w)
}

// KeyStatus counts the keys of profiles.
func (c *Client) KeyStatus(ctx context.Context) (v api.KeyStatus, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/keys", nil, &v)
}

// RotateKeys wraps every account's key with a new epoch of the root key, or, with an account, gives that one new keys.
func (c *Client) RotateKeys(ctx context.Context, account string) (v api.KeysRotated, err error) {
	return v, c.call(ctx, http.MethodPost, "/v1/keys/rotate", api.RotateKeys{Account: account}, &v)
}

// RetireRoot removes an epoch of the root key.
func (c *Client) RetireRoot(ctx context.Context, epoch string) error {
	return c.call(ctx, http.MethodDelete, "/v1/keys/roots/"+url.PathEscape(epoch), nil, nil)
}

// DestroyAccountKey makes every copy of every profile of an account unreadable.
func (c *Client) DestroyAccountKey(ctx context.Context, account string) error {
	return c.call(ctx, http.MethodDelete, "/v1/accounts/"+url.PathEscape(account)+"/key", nil, nil)
}

// BackupKeys writes a sealed backup of the wrapped keys.
func (c *Client) BackupKeys(ctx context.Context, days int, w io.Writer) error {
	return c.download(ctx, "/v1/keys/backup?days="+strconv.Itoa(days), w)
}

// RestoreKeys adds the keys of a backup that are missing, and says how many.
func (c *Client) RestoreKeys(ctx context.Context, backup io.Reader) (int, error) {
	b, err := io.ReadAll(backup)
	if err != nil {
		return 0, err
	}
	var v api.KeysRestored
	err = c.raw(ctx, http.MethodPost, "/v1/keys/restore", "application/octet-stream", b, &v)
	return v.Keys, err
}

// raw sends a body as it is.
func (c *Client) raw(ctx context.Context, method, path, kind string, b []byte, out any) error {
	req, err := c.request(ctx, method, path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp, method, path, out)
}

// download writes an answer's body as it is.
func (c *Client) download(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return problem(resp)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}
