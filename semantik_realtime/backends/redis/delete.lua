-- Delete a topic, refuse its late drafts for the grace time, and publish "gone".
--
-- KEYS  meta log state fence seen    ARGV  grace_ms, channel, 1 on a node of a cluster
-- Return {1 if the topic was known, 1 if "gone" was published}.
local position = redis.call('HMGET', KEYS[1], 'offset', 'deleted')
local known = position[1] and position[1] ~= '0' and not position[2]
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'deleted', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
-- A user who may not publish there has deleted it all the same.
local published
if ARGV[3] == '1' then
  published = redis.pcall('SPUBLISH', ARGV[2], 'gone')
else
  published = redis.pcall('PUBLISH', ARGV[2], 'gone')
end
return {known and 1 or 0, type(published) == 'table' and published.err and 0 or 1}
