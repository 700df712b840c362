//go:build race

package pgstore_test

// raceDetector says whether the tests run with the race detector.
const raceDetector = true
