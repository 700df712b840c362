//go:build soak

package main

import (
	"testing"
	"time"
)

func TestSoakModel(t *testing.T) {
	t.Run("shared volume", func(t *testing.T) { model(t, 2*time.Minute, true) })
	t.Run("own scratch disks", func(t *testing.T) { model(t, time.Minute, false) })
}

func TestSoakNothingOfTheEUGoesToTheUS(t *testing.T) { twoAccounts(t, 200, 8) }
