// Package plural counts things in sentences for people. Nouns with an irregular plural
// are not for it.
package plural

import "strconv"

// Of returns n and the noun: "1 container", "2 containers".
func Of(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.Itoa(n) + " " + noun
}
