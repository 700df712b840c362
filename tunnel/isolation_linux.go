package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"
)

// isolation is the nftables rules of one gateway, in a table of their own: what comes out of the tunnel reaches the fleet
// port of the gateway's address (and its echo), and nothing else on this machine or behind it.
//
//	table inet driftstack_IFACE {
//	    chain input   { filter hook input:   iif IFACE, from the tunnel's network to ADDRESS, tcp dport PORT    accept
//	                                         iif IFACE, from the tunnel's network to ADDRESS, icmp echo request accept
//	                                         iif IFACE                                                         drop
//	                                         to ADDRESS, iif neither IFACE nor lo                              drop }
//	    chain forward { filter hook forward: iif IFACE drop; oif IFACE drop }
//	    chain output  { filter hook output:  oif IFACE, from ADDRESS, tcp sport PORT, not a SYN alone   accept
//	                                         oif IFACE, from ADDRESS, icmp echo reply                   accept
//	                                         oif IFACE                                                  drop }
//	}
//
// Answers are told by what they are and not by connection tracking: that table can be full, and then drops at random. A
// drop is final, whatever other tables accept.
type isolation struct {
	iface string
	addr  netip.Addr
	port  uint16
	fixed func() // called when the rules had to be put back; may be nil
	log   *zap.Logger
	conn  func() *nftables.Conn
	*caller
}

// errRules says that the rules in the kernel are not those of this file.
var errRules = errors.New("the isolation rules are not what they should be")

// isolate installs the rules and reads them back. Without nftables the error wraps ErrBackend: a gateway that cannot keep
// hosts apart must not use this machine's network.
func isolate(ctx context.Context, cfg deviceConfig) (*isolation, error) {
	return isolateBy(ctx, cfg, func() *nftables.Conn { return &nftables.Conn{} })
}

func isolateBy(ctx context.Context, cfg deviceConfig, conn func() *nftables.Conn) (*isolation, error) {
	if cfg.FleetPort == 0 {
		return nil, errors.New("a gateway with a network interface needs its fleet port: hosts may reach nothing else")
	}
	i := &isolation{
		iface: cfg.Interface, addr: cfg.Addr, port: uint16(cfg.FleetPort), fixed: cfg.Repaired, log: cfg.Log, conn: conn,
		caller: newCaller("nftables", nil),
	}
	err := i.install(ctx)
	if err == nil {
		err = i.verify(ctx)
	}
	if err == nil {
		err = i.clear(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: nftables keeps hosts apart, and does not work here: load the module nf_tables and run as root, "+
			"or use the netstack backend: %w", ErrBackend, err)
	}
	return i, nil
}

// check puts the rules back when someone has flushed or changed them.
func (i *isolation) check(ctx context.Context) error {
	err := i.verify(ctx)
	if err == nil {
		return nil
	}
	i.log.Error("the rules that keep hosts apart were changed by someone; installing them again. Hosts may have reached more than "+
		"they should: find out who runs nft on this machine", zap.String("table", i.table().Name), zap.Error(err))
	if i.fixed != nil {
		i.fixed()
	}
	if err := i.install(ctx); err != nil {
		return err
	}
	return i.verify(ctx)
}

// remove takes the table away; one that is gone already is fine.
func (i *isolation) remove(ctx context.Context) error {
	_, err := call(ctx, i.caller, "remove rules from", func() (struct{}, error) {
		c := i.conn()
		c.DelTable(i.table())
		err := c.Flush()
		if errors.Is(err, syscall.ENOENT) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// clear takes the tables of interfaces away that are no more: a gateway that was killed leaves its table behind, which drops
// what is sent to its address through any other interface, such as the one it is started with next.
func (i *isolation) clear(ctx context.Context) error {
	_, err := call(ctx, i.caller, "clear old rules from", func() (struct{}, error) {
		c := i.conn()
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			return struct{}{}, err
		}
		for _, t := range tables {
			iface, ours := strings.CutPrefix(t.Name, tablePrefix)
			if _, err := net.InterfaceByName(iface); !ours || iface == i.iface || err == nil || !noInterface(err) {
				continue
			}
			i.log.Info("removing the rules of an interface that is no more", zap.String("table", t.Name))
			c.DelTable(t)
			if err := c.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
}

const tablePrefix = "driftstack_"

func (i *isolation) table() *nftables.Table {
	return &nftables.Table{Name: tablePrefix + i.iface, Family: nftables.TableFamilyINet}
}

// install replaces the table in one transaction: at no moment there are no rules.
func (i *isolation) install(ctx context.Context) error {
	_, err := call(ctx, i.caller, "install rules with", func() (struct{}, error) {
		c := i.conn()
		c.AddTable(i.table()) // so that there is one to delete
		c.DelTable(i.table())
		table := c.AddTable(i.table())
		for _, want := range i.chains() {
			chain := want.chain
			chain.Table = table
			c.AddChain(&chain)
			for _, exprs := range want.rules {
				c.AddRule(&nftables.Rule{Table: table, Chain: &chain, Exprs: exprs})
			}
		}
		return struct{}{}, c.Flush()
	})
	return err
}

// verify reads the table back and compares all of it.
func (i *isolation) verify(ctx context.Context) error {
	_, err := call(ctx, i.caller, "read rules from", func() (struct{}, error) { return struct{}{}, i.compare() })
	return err
}

func (i *isolation) compare() error {
	c := i.conn()
	table, err := c.ListTableOfFamily(i.table().Name, nftables.TableFamilyINet)
	if errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%w: the table is gone", errRules)
	} else if err != nil {
		return err
	}
	if table.Flags != 0 {
		return fmt.Errorf("%w: the table is dormant", errRules)
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	have := map[string]*nftables.Chain{}
	for _, chain := range all {
		if chain.Table.Name == table.Name {
			have[chain.Name] = chain
		}
	}
	want := i.chains()
	if len(have) != len(want) {
		return fmt.Errorf("%w: %d chains instead of %d", errRules, len(have), len(want))
	}
	for _, w := range want {
		chain, ok := have[w.chain.Name]
		if !ok || chain.Type != w.chain.Type || chain.Hooknum == nil || *chain.Hooknum != *w.chain.Hooknum ||
			chain.Priority == nil || *chain.Priority != *w.chain.Priority || chain.Policy == nil || *chain.Policy != *w.chain.Policy {
			return fmt.Errorf("%w: chain %s", errRules, w.chain.Name)
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(w.rules, rules, func(exprs []expr.Any, r *nftables.Rule) bool { return sameExprs(exprs, r.Exprs) }) {
			return fmt.Errorf("%w: the rules of chain %s", errRules, w.chain.Name)
		}
	}
	return nil
}

// sameExprs compares as the kernel is told: the structs hold more than one form of the same.
func sameExprs(a, b []expr.Any) bool {
	return slices.EqualFunc(a, b, func(a, b expr.Any) bool {
		x, err1 := expr.Marshal(byte(nftables.TableFamilyINet), a)
		y, err2 := expr.Marshal(byte(nftables.TableFamilyINet), b)
		return err1 == nil && err2 == nil && bytes.Equal(x, y)
	})
}
