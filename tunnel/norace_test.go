//go:build !race

package tunnel

// raceDetector says whether the tests run with the race detector.
const raceDetector = false
