package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/outbound"
)

// entry is what is done to a host or one of its devices, or to an account.
type entry struct {
	action, host, device, session, detail, account string
}

// write adds a line to the audit log, with what it tells of: both are stored, or neither.
func write(b *pgx.Batch, by orchestrator.Act, e entry) {
	b.Queue(`INSERT INTO audit (actor, action, host, device, session, reason, detail, account) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		by.By, e.action, e.host, e.device, e.session, by.Reason, e.detail, e.account)
}

// system is who does in the audit log what nobody has ordered.
const system = "driftstack"

// AuditRefusal adds a connection that was not made, because it would have gone elsewhere than its category may be.
func (s *Store) AuditRefusal(ctx context.Context, r outbound.Refusal) error {
	var b pgx.Batch
	write(&b, orchestrator.Act{By: system}, entry{action: "outbound_refused", detail: r.Category + " to " + r.To + ": " + r.Why})
	return unavailable(s.pool.SendBatch(ctx, &b).Close())
}

// AuditFilter narrows Audit; an empty field fits every entry.
type AuditFilter struct {
	Host   string
	Before int64 // only older entries
	Limit  int
}

// Audit is one page of the audit log, newest first.
func (s *Store) Audit(ctx context.Context, f AuditFilter) (api.AuditList, error) {
	n := narrowed{`true`, []any{f.Limit + 1}}
	n.by(`host = $%d`, f.Host, f.Host != "")
	n.by(`id < $%d`, f.Before, f.Before != 0)
	rows, err := s.pool.Query(ctx, `
		SELECT id, at, actor, action, host, device, session, reason, detail, account FROM audit
		WHERE `+n.where+` ORDER BY id DESC LIMIT $1`, n.args...)
	if err != nil {
		return api.AuditList{}, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[api.AuditEntry])
	if err != nil {
		return api.AuditList{}, unavailable(err)
	}
	page := api.AuditList{Entries: list}
	if len(list) > f.Limit {
		page.Entries = list[:f.Limit]
		page.Next = page.Entries[f.Limit-1].ID
	}
	return page, nil
}
