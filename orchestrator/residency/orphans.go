package residency

import (
	"fmt"
	"slices"
	"strings"
)

// Column is one that a database has.
type Column struct{ Table, Name string }

// Orphans says what is wrong between a database as it is and lines of [Schema]: columns that are in no line or in several, and lines of what is not there.
func Orphans(db Database, lines []Columns, live []Column) (problems []string) {
	owners := map[Column][]string{}
	for _, l := range lines {
		if l.Database != db {
			continue
		}
		if (l.Category == None) != (l.Why != "") {
			problems = append(problems, fmt.Sprintf("%s: the line of %s says either a category or why there is none", l.Table, strings.Join(l.Names, " ")))
		}
		for _, n := range l.Names {
			c := Column{l.Table, n}
			owners[c] = append(owners[c], string(l.Category))
			if !slices.Contains(live, c) {
				problems = append(problems, fmt.Sprintf("%s.%s is in residency.Schema and not in the database", c.Table, c.Name))
			}
		}
	}
	for _, c := range live {
		switch n := len(owners[c]); {
		case n == 0:
			problems = append(problems, fmt.Sprintf("%s.%s belongs to no category: add it to a line of residency.Schema", c.Table, c.Name))
		case n > 1:
			problems = append(problems, fmt.Sprintf("%s.%s belongs to several categories: %s", c.Table, c.Name, strings.Join(owners[c], ", ")))
		}
	}
	return problems
}
