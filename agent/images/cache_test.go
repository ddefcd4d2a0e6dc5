package images

import "testing"

// An image that is removed while somebody reads it is not found afterwards, by
// whichever order the two went.
func TestAnImageThatWentIsNotKept(t *testing.T) {
	var c cache
	_, at := c.get("a") // a reader begins, and is slow
	c.drop("a")
	c.put("a", &Image{}, at)
	if i, _ := c.get("a"); i != nil {
		t.Error("an image is known that was removed while it was read")
	}
	_, at = c.get("a")
	c.put("a", &Image{}, at)
	if i, _ := c.get("a"); i == nil {
		t.Error("an image that was read in peace is not known")
	}
	c.drop("a")
	if i, _ := c.get("a"); i != nil {
		t.Error("an image is known that was removed")
	}
}
